"""Stream analysis: windows and joins over topics of sales."""
