"""What a command says on the terminal: facts at the start, results and what to do next at the end.

Plain text of 80 columns without colour: the same on a screen and in a log file.
"""
