"""Parts of benchmarks/recipes.py: data, recipes, plans, runs and the table."""
