"""From a data set to a plan."""
