//! The time of a grant's last restore: known at once, and written down now and then.

use std::time::Duration;

use super::super::references::host;
use super::super::trial::{World, run};
use super::{Terms, restore, save};
use crate::host::authority::records;
use crate::host::base::right::GrantRef;
use crate::id::{ObjectId, Pool};

/// The last use of a grant is known, and not written for each.
#[test]
fn the_last_restore_is_written_down_now_and_then() {
    run(async {
        let (world, agent) = host().await;
        let owner = world.object("x");
        world.now.set(5_000);
        let text = save(&owner, &Terms::default()).await.unwrap();
        let id = ObjectId::named(Pool::default(), "Trial", "x");
        let last = |vat: &crate::host::Vat| {
            records::list_behind(vat, id, None, 9).unwrap().remove(0).1.restored_ms
        };
        assert_eq!(last(&world.vat), 0);
        let before = world.vat.turns.store().last_submitted();
        for now in [6_000, 7_000, 8_000] {
            world.now.set(now);
            restore(&agent, &text).await.unwrap();
            assert_eq!(last(&world.vat), now);
        }
        assert_eq!(world.vat.turns.store().last_submitted(), before, "nothing was written yet");
        world.vat.close().unwrap();
        let next = World::over_disk(world.disk.clone());
        assert_eq!(last(&next.vat), 8_000);
    });
}

/// The last use reaches the disk by itself, and once for many restores.
#[test]
fn the_last_use_is_written_down_from_time_to_time() {
    run(async {
        let (world, agent) = host().await;
        let owner = world.object("x");
        let text = save(&owner, &Terms::default()).await.unwrap();
        world.now.set(9_000);
        for _ in 0..50 {
            restore(&agent, &text).await.unwrap();
        }
        let before = world.vat.turns.store().last_submitted().0;
        records::note_restores(&world.vat, Duration::from_millis(20));
        let id = ObjectId::named(Pool::default(), "Trial", "x");
        loop {
            world.vat.flush().await.unwrap();
            let (grant, _) = records::list_behind(&world.vat, id, None, 1).unwrap().remove(0);
            if records::get(&world.vat, GrantRef::new(id, grant)).unwrap().unwrap().restored_ms
                == 9_000
            {
                break;
            }
            tokio::task::yield_now().await;
        }
        assert_eq!(world.vat.turns.store().last_submitted().0, before + 1);
    });
}
