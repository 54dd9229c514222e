"""narrowcast."""
