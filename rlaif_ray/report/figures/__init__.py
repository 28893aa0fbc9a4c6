"""The report's figures, as Plotly's JSON, by what they show."""
