"""From a network and a volume to probabilities and labels on the volume's own grid."""
