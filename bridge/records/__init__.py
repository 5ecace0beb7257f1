"""What is kept of every call: the record, the database, the spool on disk, the recording."""
