"""Records of calls: the record, the database, the spool on disk, the audio recording."""
