"""Examples become token ids and masks: in workers, kept in a store, packed into batches."""
