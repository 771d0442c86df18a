"""The one SQLite file: records and audio until the cloud has them, and the ledger of it all."""
