"""Pretraining: the published recipe, on one core or many nodes (the extra ``pretrain``)."""
