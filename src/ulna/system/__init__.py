"""The machine: files, locks, devices, signals, progress."""
