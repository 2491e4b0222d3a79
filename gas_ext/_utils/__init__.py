"""What every room uses: files, seeds and noise, progress, processes, optional imports."""
