"""The report: one versioned document from which terminal, HTML, Markdown, JUnit and the exit code derive."""
