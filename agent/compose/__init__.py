"""The composition root in pieces: each builds the parts of one side, which app.py puts together."""
