"""Finding and repairing what is wrong with a data set."""
