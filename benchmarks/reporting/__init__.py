"""From the results of benchmarks to the tables and pictures of the documents."""
