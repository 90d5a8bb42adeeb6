"""The papers' claims beside what was measured here: `results` looks figures up, `claims` judges, `page` lays out."""
