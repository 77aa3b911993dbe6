"""Medical knowledge: the graph, its reader of reports, its rules. Usable without vlm and without torch."""
