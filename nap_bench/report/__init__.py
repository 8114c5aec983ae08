"""From results to what people look at: scores, claims, figures, tables and one page. Heavy imports wait until used."""
