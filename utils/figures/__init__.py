"""Drawing only: reads tables and arrays, writes figures; depends on no model."""
