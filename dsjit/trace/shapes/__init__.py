"""Sizes that change from call to call: one program for many of them."""
