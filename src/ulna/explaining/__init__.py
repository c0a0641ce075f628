"""What an answer hangs on, and how sure it is."""
