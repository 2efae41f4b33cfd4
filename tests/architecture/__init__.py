"""What holds for all of the code: budgets, manners, the table of outcomes, decisions, and what start-up may load."""
