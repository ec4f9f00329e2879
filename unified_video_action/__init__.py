"""Unified Video Action model (UVA, RSS 2025): one masked transformer that watches and acts."""
