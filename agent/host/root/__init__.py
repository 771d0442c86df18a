"""The root daemon, `holdfast-root`: the few things that need root, as fixed verbs on a socket.

`forms` is what both sides speak, `acts` what a verb does, `daemon` who is let in and answered,
`command` the program, `client` the agent's side. All but the client load the standard library's
smallest modules and msgspec alone: it is a process of root's that stands by for years.
"""
