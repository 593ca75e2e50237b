"""Runs that travel: a folder or an archive with a model card, torch programs of it, and the hub."""
