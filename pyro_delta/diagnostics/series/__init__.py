"""What runs of series are asked: numbers that are missing, and those that come next."""
