"""Prepared cases on disk, by what they were made from: written once, mapped into memory by every training that wants them."""
