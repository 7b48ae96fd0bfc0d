module digest

go 1.24
