"""What an answer depends on, and how sure it is."""
