"""The local HTTP doors; thin: parse, call, render.

entry    who gets in: connections, names, callers and their scopes
form     what is asked and answered, and the OpenAPI document that says so
routes   the doors, a file each; one more door is one more file, named in app.py
metrics  what a scraper sees
"""
