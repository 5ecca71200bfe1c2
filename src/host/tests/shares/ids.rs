/// What callers by the root keep stays counted while grants come and go below it.
#[test]
fn a_grant_that_is_deleted_takes_nothing_off_the_share_of_its_root() {
    run(async {
        let world = World::new();
        let callers = holders(&world, &mut Vec::new()).await;
        for n in 0..10 {
            noted(&callers[1], n).await.unwrap();
        }
        let root = requests(&world.vat, x(), None).unwrap()[0].lineage[0];
        let full = share_of(&world, root);
        assert!(full.ids == 10 && full.bytes > 500 && full.grants == 0, "{full:?}");
        for label in ["one", "two", "three"] {
            revoke(&callers[1], label).await.unwrap();
        }
        settle().await;
        assert_eq!(share_of(&world, root), full);
    });
}
