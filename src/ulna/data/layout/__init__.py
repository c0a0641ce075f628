"""Which files are the cases of a data set, and what is known of them."""
