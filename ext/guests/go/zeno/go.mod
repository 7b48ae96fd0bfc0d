module zeno

go 1.24
