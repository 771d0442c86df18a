"""The doors, a file each: what they call is in other parts.

One more door is one more file: a class that gets what it calls by its constructor, and whose
`routes()` are Route records (form/route.py); built, and its routes named, in App._make_doors.
What takes longer than a request is a job (handing_in.py), or tells how it goes (form/events.py).
"""
