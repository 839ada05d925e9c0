"""Runs the user's Python once, and records what it did."""
