"""Floor 6: what narrowing costs, as pure functions of formats, casts and tensors."""
