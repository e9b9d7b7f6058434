"""What `python -m polylab.evaluate` needs beside its command line."""
