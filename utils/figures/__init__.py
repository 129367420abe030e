"""Drawing only: tables and arrays in, files out; nothing here knows a model."""
