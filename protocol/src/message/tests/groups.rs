//! Messages of consumer groups: they come back, golden bytes of the structs, and what is refused.

use super::*;
use crate::limits::{GROUP_TOPICS_MAX, GROUPS_PAGE_MAX, MEMBER_QUEUES_MAX, MEMBERS_PAGE_MAX, NAME_MAX};

const STARTS: [Start; 4] = [
    Start::Earliest,
    Start::Latest,
    Start::Offset { epoch: Epoch::ANY, offset: QueueOffset(7) },
    Start::Time(Nanos(1_700_000_000_000_000_000)),
];
const TOPICS: [GroupTopic; 2] =
    [GroupTopic { topic: TopicId(5), start: STARTS[2] }, GroupTopic { topic: TopicId(6), start: STARTS[3] }];
const QUEUES: [AssignedQueue; 2] =
    [AssignedQueue { topic: TopicId(5), queue: QueueId(1) }, AssignedQueue { topic: TopicId(6), queue: QueueId(9) }];
const GROUP: GroupId = GroupId(8);
const MEMBER: MemberId = MemberId(3 << 32 | 1);
const GROUP_ROW: GroupRow<'static> =
    GroupRow { name: "billing", id: GROUP, created: Nanos(17), topics: GroupTopics::of(&TOPICS) };
const MEMBER_ROW: MemberRow<'static> =
    MemberRow { name: "one", id: MEMBER, client: "c", joined: Nanos(9), connected: true, queues: 3 };
const LAG_ROW: LagRow = LagRow {
    queue: QueueId(1),
    offset: QueueOffset(7),
    epoch: Epoch(2),
    committed: true,
    end: QueueOffset(9),
    oldest_unread: Some(Nanos(1)),
    holder: Some(MEMBER),
};

fn join<'a>(member: &'a str, topics: &'a [TopicId]) -> Request<'a> {
    Request::JoinGroup(JoinGroup { group: GROUP, member, topics: topics.into(), client: "client-1" })
}

fn create<'a>(name: &'a str, topics: &'a [GroupTopic]) -> Request<'a> {
    Request::CreateGroup(CreateGroup { name, topics: topics.into() })
}

fn subscribe(group: GroupId, member: MemberId, start: Start) -> Request<'static> {
    let (topic, queue, mode) = (TopicId(1), QueueId(2), Mode::Group { group, member });
    Request::Subscribe(Subscribe { topic, queue, mode, start, credit_messages: 10, credit_bytes: 1 << 40 })
}

fn requests() -> Vec<Request<'static>> {
    const ALL: [GroupTopic; 4] = [
        GroupTopic { topic: TopicId(1), start: STARTS[0] },
        GroupTopic { topic: TopicId(2), start: STARTS[1] },
        TOPICS[0],
        TOPICS[1],
    ];
    let (group, member, topic, queue) = (GROUP, MEMBER, TopicId(1), QueueId(2));
    vec![
        create("billing", &ALL),
        create("%RETRY%a", &[]),
        Request::DeleteGroup(DeleteGroup { name: "a", id: None }),
        Request::DeleteGroup(DeleteGroup { name: "a", id: Some(group) }),
        Request::ListGroups(ListGroups { prefix: "a", after: "b", limit: GROUPS_PAGE_MAX }),
        Request::DescribeGroup(DescribeGroup { name: "a", after: "m", limit: MEMBERS_PAGE_MAX }),
        Request::GroupLag(GroupLag { group, topic, first_queue: queue, limit: 1 }),
        Request::ResetOffset(ResetOffset { group, topic, queue, start: STARTS[1] }),
        Request::ResetOffset(ResetOffset {
            group,
            topic,
            queue,
            start: Start::Offset { epoch: Epoch(3), offset: QueueOffset(4) },
        }),
        join("member-1", &[TopicId(1), TopicId(u64::MAX)]),
        Request::LeaveGroup(LeaveGroup { group, member }),
        Request::Heartbeat(Heartbeat { group, member, number: 4 }),
        subscribe(group, member, Start::Earliest),
    ]
}

fn answers() -> Vec<Answer<'static>> {
    const GROUPS: [GroupRow<'static>; 2] =
        [GROUP_ROW, GroupRow { name: "", topics: GroupTopics::of(&[]), ..GROUP_ROW }];
    const MEMBERS: [MemberRow<'static>; 2] =
        [MEMBER_ROW, MemberRow { name: "", client: "", connected: false, ..MEMBER_ROW }];
    const LAGS: [LagRow; 2] = [LAG_ROW, LagRow { committed: false, oldest_unread: None, holder: None, ..LAG_ROW }];
    let (group, member) = (GROUP, MEMBER);
    vec![
        Answer::CreateGroup(GroupAnswer { group: GROUP_ROW, changed: true }),
        Answer::DeleteGroup(GroupAnswer { group: GROUP_ROW, changed: false }),
        Answer::ListGroups(ListGroupsAnswer { groups: GROUPS[..].into(), more: true }),
        Answer::DescribeGroup(DescribeGroupAnswer {
            group: GROUP_ROW,
            home: ShardId(3),
            number: 7,
            settling: true,
            members: MEMBERS[..].into(),
            more: true,
        }),
        Answer::GroupLag(GroupLagAnswer { shard: ShardId(1), rows: LAGS[..].into(), now: Nanos(5), more: true }),
        Answer::ResetOffset(ResetOffsetAnswer { epoch: Epoch(2), offset: QueueOffset(3) }),
        Answer::JoinGroup(JoinGroupAnswer {
            member,
            number: 6,
            heartbeat: Nanos::from_secs(3),
            silence: Nanos::from_secs(10),
            grace: Nanos::ZERO,
        }),
        Answer::LeaveGroup(LeaveGroup { group, member }),
        Answer::Heartbeat(HeartbeatAnswer { number: 5 }),
        Answer::Assignment(Assignment { group, member, number: 5, queues: QUEUES[..].into() }),
        Answer::Assignment(Assignment { group, member, number: 6, queues: AssignedQueues::from(&[][..]) }),
        Answer::Revoke(Revoke { subscription: SubscriptionId(3) }),
    ]
}

fn every_frame() -> Vec<Vec<u8>> {
    let requests = requests();
    let answers = answers();
    requests.iter().map(encoded_request).chain(answers.iter().map(encoded_answer)).collect()
}

/// What a frame says, if it is accepted.
fn said(frame: &Frame<'_>) -> Option<String> {
    let request = Request::decode(frame).map(|request| format!("{request:?}"));
    request.or_else(|_| Answer::decode(frame).map(|answer| format!("{answer:?}"))).ok()
}

#[test]
fn requests_and_answers_of_groups_come_back() {
    requests().iter().for_each(check_request);
    answers().iter().for_each(check_answer);
}

#[test]
fn a_group_subscribes_without_a_start_of_its_own() {
    let bytes = encoded_request(&subscribe(GROUP, MEMBER, STARTS[3]));
    let Ok(Request::Subscribe(decoded)) = Request::decode(&frame_of(&bytes)) else { panic!("a subscribe") };
    assert_eq!((decoded.start, decoded.mode), (Start::Earliest, Mode::Group { group: GROUP, member: MEMBER }));
}

/// The structs of members, byte for byte. If this fails, raise [`PROTOCOL_VERSION`] instead.
#[test]
fn golden_bytes_of_version_1() {
    let head = |length: u8, kind: u8, flags: u8, header: u8, correlation: u8| {
        let mut bytes = [0; FRAME_HEAD_LEN];
        (bytes[0], bytes[4], bytes[5], bytes[6], bytes[8], bytes[16]) = (length, 1, kind, flags, header, correlation);
        bytes
    };
    let words = |values: &[u64]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
    let (group, member) = (GROUP, MEMBER);
    let heartbeat = encoded_request(&Request::Heartbeat(Heartbeat { group, member, number: 4 }));
    assert_eq!(heartbeat, [&head(24, 82, 0, 24, 77)[..], &words(&[8, 0x3_0000_0001, 4])].concat());
    let answer = encoded_answer(&Answer::Heartbeat(HeartbeatAnswer { number: 5 }));
    assert_eq!(answer, [&head(8, 82, 8, 8, 77)[..], &words(&[5])].concat());
    let revoke = encoded_answer(&Answer::Revoke(Revoke { subscription: SubscriptionId(3) }));
    assert_eq!(revoke, [&head(8, 37, 8, 8, 0)[..], &words(&[3])].concat());
    let assignment =
        encoded_answer(&Answer::Assignment(Assignment { group, member, number: 5, queues: QUEUES[..].into() }));
    let (mine, rows) = (words(&[8, 0x3_0000_0001, 5]), words(&[5, 1, 6, 9]));
    assert_eq!(assignment, [&head(24 + 32, 83, 8, 24, 0)[..], &mine, &rows].concat());
}

#[test]
fn what_is_out_of_range_is_an_error_of_the_request_alone() {
    use ErrorCode::{InvalidArgument, InvalidName};
    let refused = |request: Request<'_>| {
        let bytes = encoded_request(&request);
        let error = Request::decode(&frame_of(&bytes)).unwrap_err();
        assert!(!error.is_fatal(), "{error}");
        error.code()
    };
    let long = "x".repeat(NAME_MAX + 1);
    for name in ["a/b", "", &long] {
        assert_eq!(refused(create(name, &TOPICS)), InvalidName);
        assert_eq!(refused(Request::DeleteGroup(DeleteGroup { name, id: None })), InvalidName);
        assert_eq!(refused(Request::DescribeGroup(DescribeGroup { name, after: "", limit: 1 })), InvalidName);
        assert_eq!(refused(join(name, &[TopicId(1)])), InvalidName);
    }
    assert_eq!(refused(create("a", &[TOPICS[0]; GROUP_TOPICS_MAX + 1])), InvalidArgument);
    assert_eq!(refused(join("a", &[TopicId(1); GROUP_TOPICS_MAX + 1])), InvalidArgument);
    assert_eq!(refused(join("a", &[])), InvalidArgument);
    let limit = GROUPS_PAGE_MAX + 1;
    assert_eq!(refused(Request::ListGroups(ListGroups { prefix: "", after: "", limit })), InvalidArgument);
    assert_eq!(refused(Request::ListGroups(ListGroups { prefix: &long, after: "", limit: 1 })), InvalidArgument);
    let limit = MEMBERS_PAGE_MAX + 1;
    assert_eq!(refused(Request::DescribeGroup(DescribeGroup { name: "a", after: "", limit })), InvalidArgument);
    let lag = GroupLag { group: GROUP, topic: TopicId(1), first_queue: QueueId(0), limit: PAGE_ITEMS_MAX + 1 };
    assert_eq!(refused(Request::GroupLag(lag)), InvalidArgument);
    assert_eq!(refused(subscribe(GroupId(0), MEMBER, STARTS[0])), InvalidArgument);
    assert_eq!(refused(subscribe(GROUP, MemberId(0), STARTS[0])), InvalidArgument);
}

#[test]
fn full_pages_of_the_longest_rows_fit_a_header() {
    let (name, client) = ("n".repeat(NAME_MAX), "c".repeat(crate::limits::CLIENT_TEXT_MAX));
    let topics = [TOPICS[0]; GROUP_TOPICS_MAX];
    let group = GroupRow { name: &name, topics: topics[..].into(), ..GROUP_ROW };
    let groups = vec![group; GROUPS_PAGE_MAX as usize];
    check_answer(&Answer::ListGroups(ListGroupsAnswer { groups: groups[..].into(), more: true }));
    let members = vec![MemberRow { name: &name, client: &client, ..MEMBER_ROW }; MEMBERS_PAGE_MAX as usize];
    let (home, number, settling) = (ShardId(3), 7, true);
    let members = members[..].into();
    check_answer(&Answer::DescribeGroup(DescribeGroupAnswer { group, home, number, settling, members, more: true }));
    let rows = vec![LAG_ROW; PAGE_ITEMS_MAX as usize];
    let (shard, now) = (ShardId(0), Nanos(1));
    check_answer(&Answer::GroupLag(GroupLagAnswer { shard, rows: rows[..].into(), now, more: true }));
}

#[test]
fn an_assignment_is_whole_rows_and_not_too_many() {
    let queues = vec![QUEUES[0]; MEMBER_QUEUES_MAX];
    let (group, member, number) = (GROUP, MEMBER, 1);
    let bytes = encoded_answer(&Answer::Assignment(Assignment { group, member, number, queues: queues[..].into() }));
    let frame = frame_of(&bytes);
    assert_eq!(Assignment::decode(frame.header, frame.body).map(|it| it.queues.len()), Ok(MEMBER_QUEUES_MAX));
    let longer = [frame.body, &frame.body[..16]].concat();
    assert_eq!(Assignment::decode(frame.header, &longer).map(drop), Err(DecodeError::Field("queues")));
    for end in 1..16 {
        assert_eq!(Assignment::decode(frame.header, &frame.body[..end]).map(drop), Err(DecodeError::Body));
    }
    let mut reserved = frame.body[..32].to_vec();
    reserved[31] = 1;
    assert_eq!(Assignment::decode(frame.header, &reserved).map(drop), Err(DecodeError::Body));
}

/// A row that a later version might send is refused where it is decoded, so that reading a list never fails.
#[test]
fn a_start_that_is_not_known_is_refused_in_every_list() {
    let frames = [
        encoded_request(&create("billing", &TOPICS)),
        encoded_answer(&Answer::CreateGroup(GroupAnswer { group: GROUP_ROW, changed: true })),
        encoded_answer(&answers()[2]),
        encoded_answer(&answers()[3]),
    ];
    for mut bytes in frames {
        let row = [&5u64.to_le_bytes()[..], &7u64.to_le_bytes(), &[3, 0, 0, 0, 0, 0, 0, 0]].concat();
        let at = bytes.windows(row.len()).position(|window| window == row).expect("the first topic's row");
        let decode = |bytes: &[u8]| {
            let frame = frame_of(bytes);
            Request::decode(&frame).map(drop).or_else(|_| Answer::decode(&frame).map(drop))
        };
        assert_eq!(decode(&bytes), Ok(()));
        bytes[at + 16] = 5;
        let error = decode(&bytes).unwrap_err();
        assert!(matches!(error, DecodeError::Field("start") | DecodeError::Kind(_)), "{error}");
        (bytes[at + 16], bytes[at + 17]) = (3, 1);
        assert!(decode(&bytes).is_err(), "what is reserved is zero");
    }
}

/// Zeros behind a table's last text may be missing; nothing else may.
#[test]
fn no_header_that_is_cut_short_is_taken_for_another() {
    for bytes in every_frame() {
        let whole = frame_of(&bytes);
        let kind = Kind::from_number(whole.head.kind).expect("a known kind");
        for end in 0..whole.header.len() {
            let mut cut = Vec::new();
            let header = &whole.header[..end];
            frame::encode(kind, whole.head.sender(), Correlation(1), header, whole.body, &mut cut);
            if let Some(said) = said(&frame_of(&cut)) {
                assert_eq!(Some(said), self::said(&whole), "{kind:?} cut at {end}");
                assert!(whole.header[end..].iter().all(|&byte| byte == 0), "{kind:?} cut at {end}");
            }
        }
    }
}

proptest! {
    #[test]
    fn assignments_and_lags_come_back(
        (group, member, number) in (any::<u64>(), any::<u64>(), any::<u64>()),
        queues in prop::collection::vec((any::<u64>(), any::<u32>()), 0..40),
        lags in prop::collection::vec((any::<[u64; 5]>(), any::<u32>(), any::<bool>()), 0..10),
    ) {
        let queues: Vec<_> =
            queues.iter().map(|&(topic, queue)| AssignedQueue { topic: TopicId(topic), queue: QueueId(queue) }).collect();
        let (group, member) = (GroupId(group), MemberId(member));
        check_answer(&Answer::Assignment(Assignment { group, member, number, queues: queues[..].into() }));
        check_request(&Request::Heartbeat(Heartbeat { group, member, number }));
        check_request(&Request::LeaveGroup(LeaveGroup { group, member }));
        let row = |&([offset, epoch, end, oldest, holder], queue, committed): &([u64; 5], u32, bool)| LagRow {
            queue: QueueId(queue),
            offset: QueueOffset(offset),
            epoch: Epoch(epoch),
            committed,
            end: QueueOffset(end),
            oldest_unread: Some(Nanos(oldest)).filter(|instant| instant.0 != 0),
            holder: Some(MemberId(holder)).filter(|member| member.0 != 0),
        };
        let rows: Vec<_> = lags.iter().map(row).collect();
        let (shard, now, more) = (ShardId(1), Nanos(number), true);
        check_answer(&Answer::GroupLag(GroupLagAnswer { shard, rows: rows[..].into(), now, more }));
    }

    #[test]
    fn flipped_bytes_never_panic(
        which: prop::sample::Index,
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1..=255u8), 1..4),
    ) {
        let mut bytes = which.get(&every_frame()).clone();
        for (index, flip) in flips {
            let at = index.index(bytes.len());
            bytes[at] ^= flip;
        }
        if let Ok(Received::Frame(frame)) = frame::decode(&bytes, FRAME_MAX_DEFAULT) {
            poke(&frame);
        }
    }
}
