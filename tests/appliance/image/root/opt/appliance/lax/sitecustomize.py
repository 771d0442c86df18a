"""The negative control: a store that takes a commit for done before the disk has it."""

import sqlite3

_connect = sqlite3.connect


class Lax(sqlite3.Connection):
    """Whoever asks for FULL gets NORMAL."""

    def execute(self, sql: str, *parameters: object) -> sqlite3.Cursor:
        return super().execute(
            sql.replace("synchronous = FULL", "synchronous = NORMAL"), *parameters
        )


def connect(*arguments: object, **more: object) -> sqlite3.Connection:
    """As sqlite3 has it."""
    return _connect(*arguments, **{"factory": Lax, **more})


sqlite3.connect = connect
