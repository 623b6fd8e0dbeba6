"""Records to tables, figures, one page, leaderboards' forms."""
