"""Ratings with the items and users they speak of: published formats in, one form out."""
