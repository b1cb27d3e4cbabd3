"""Where a catalogue comes from: raw Amazon Reviews files, a folder of parquet files, or the generated demo shop."""
