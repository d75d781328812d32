"""From the ledger to what a reader sees: tables, figures, widgets."""
