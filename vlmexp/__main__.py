from vlmexp.main import main

main()
