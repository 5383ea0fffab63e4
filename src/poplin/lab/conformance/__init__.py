"""NetworkPolicy tried case by case: what every pod reaches, by the evaluator and by real packets."""
