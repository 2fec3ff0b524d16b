"""Looking inside LAP: which VLM layer every token reads, as numbers (`reading`), text (`table`) and picture (`layer_map`)."""
