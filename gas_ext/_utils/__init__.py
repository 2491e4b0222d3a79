"""Shared by all rooms: files, seeds and noise, progress, processes, optional imports."""
