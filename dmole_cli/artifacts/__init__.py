"""The files that stages write and read: kinds, paths, schemas, readers, writers, provenance."""
