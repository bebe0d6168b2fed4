"""Bytes on disk: readers and writers of raw files that know no architecture and import no torch."""
